"""Grafana dashboards as code, and the tools that check them and the rules of Prometheus."""
