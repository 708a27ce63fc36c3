"""``mdi-exit secure``: who may take part. Certificates, passwords, the access list, and signatures of models."""
