"""What no policy can pass: the largest rate that given nodes, links and exits allow, as a linear programme."""
