"""What a sandbox's processes and its guest say of themselves, in Kata's families for Prometheus."""
