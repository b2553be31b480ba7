"""`kata-monitor`: what all sandboxes of this host say of themselves, at one address for Prometheus."""
