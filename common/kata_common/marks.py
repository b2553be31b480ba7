"""Lines by which a booting guest says how far it is. Imports nothing: the agent writes its first one before all else.

The initramfs' and the agent's go to the kernel's log (and with it to the console), the last two to the console alone.
"""

# What stands behind it names the step (image/init.sh).
INITRAMFS = "kata: initramfs"
AGENT_START = "kata: agent start"
AGENT_LISTENS = "kata: agent ready"
# Whoever dials from now on is served.
READY = "kata-agent: ready"
# The reason follows; the initramfs gives up.
BOOT_FAILED = "kata: boot failed: "
# The reason follows.
POWER_OFF = "kata-agent: power off: "
