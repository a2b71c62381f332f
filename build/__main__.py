import os
import sys

if sys.version_info < (3, 10):
    sys.stderr.write(
        "eks-token: error: Python 3.10 or newer is needed, this is %d.%d (%s)\n"
        "hint: set EKS_TOKEN_PYTHON to the path of a newer one\n"
        % (sys.version_info[0], sys.version_info[1], sys.executable)
    )
    sys.exit(1)

import _signal

_signal.signal(_signal.SIGINT, _signal.SIG_DFL)
os.umask(0o077)
sys.path.insert(0, __file__[:-12])
try:
    from start import main
except Exception:
    if not os.path.isfile(__file__):
        raise
    if os.path.exists(__file__[:-11] + "manifest"):
        os.unlink(__file__[:-11] + "manifest")
    os.execv(sys.executable, [sys.executable, "-I", "-S"] + sys.argv[1:])
main()

# Python runs this file first, from the archive or from the directory that the archive is unpacked to. The path of that
# is the part of __file__ before "/__main__.py". We put it on sys.path, because an isolated Python does so only for an
# archive. The umask makes everything that this process writes private to the user, including Python's bytecode. Until
# start.py is there to say something, Ctrl-C just ends the process.
#
# An old Python, even 2.7, must be able to read the lines above, and only those: it compiles this file and never gets to
# another one. Everything else is in start.py, because Python caches the bytecode of modules but not of this file.
#
# In the directory, start.py checks whether files are missing or cut short, and replaces them from the archive, whose
# path is the first argument there. If start.py itself is damaged, or its bytecode (which is not in the list of files),
# we run the archive from here, and it unpacks everything again: a directory without its manifest never counts as
# complete. This file may be cut short too, by a crash or a full disk. That does no harm if only this comment is lost,
# so the comment is at the end.
