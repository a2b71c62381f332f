import os
import sys

if sys.version_info < (3, 11):
    sys.stderr.write(
        "eks-token: error: Python 3.11 or newer is needed, this is %d.%d (%s)\n"
        "hint: name a newer one in EKS_TOKEN_PYTHON\n" % (sys.version_info[0], sys.version_info[1], sys.executable)
    )
    sys.exit(1)

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

# What Python runs first, in the archive and in the directory that the archive was unpacked to. The path of either is
# what stands before "/__main__.py" in __file__; isolated, Python looks for modules in the archive only. The umask is
# for what this process writes, Python's bytecode included: it is the user's alone.
#
# An old Python, 2.7 too, has to be able to read the lines above, and nothing else: it compiles this file, and comes to
# no other. All that can be is in start.py, since Python keeps the bytecode of modules and not of this.
#
# In the directory, start.py sees whether files were lost or cut short, and has them replaced from the archive, whose
# path is the first argument there. Where start.py itself is the one, or its bytecode (which no list of files has), the
# archive is run from here, and unpacks everything: without its manifest no directory is taken to be whole. Should this
# file be cut short in turn, by a crash or a full disk, that is well as long as only these words are hit. For that they
# stand at the end.
