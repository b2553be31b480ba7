"""Stand-ins, in a process of their own: they change what everybody there imports."""

import subprocess
import sys

PROGRAM = """
import sys
from kata_common.standins import absent, fetch, late, unused
assert absent("ssl") and not absent("ssl")
try:
    import ssl
except ImportError:
    pass
else:
    raise AssertionError("ssl is there")
late("wave", WAVE_FORMAT_PCM=7)
import wave
assert wave.WAVE_FORMAT_PCM == 7 and "chunk" not in sys.modules
held = wave
assert held.open.__module__ == "wave"  # fetches the real one
import wave
assert wave is not held and wave.__file__ and held.WAVE_FORMAT_PCM == wave.WAVE_FORMAT_PCM == 1
late("wave", open=None)
assert sys.modules["wave"] is wave and fetch("wave") is wave
unused("mailbox")
import mailbox
class Mine(mailbox.Mailbox): pass
try:
    mailbox.Maildir("x")
except NotImplementedError as error:
    assert "mailbox.Maildir was left out" in str(error)
else:
    raise AssertionError("it can be called")
assert not hasattr(mailbox, "__path__") and not hasattr(held, "__nothing__")
print("done")
"""


def test_stand_ins() -> None:
    done = subprocess.run([sys.executable, "-P", "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
