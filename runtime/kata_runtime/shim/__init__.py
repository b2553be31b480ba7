"""The runtime v2 shim: what containerd starts, and how it talks to it.

Nothing is imported here: the process that containerd waits for (`start`) pays for every module.
"""
