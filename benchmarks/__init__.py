"""One folder per table: `make bench NAME=...`, `python tools NAME`, or `python -m benchmarks.NAME` from this folder."""

import sys

if __name__ == "benchmarks" and sys.argv[0] == "-m":
    # found as a package of its own, outside the pack that its modules import from: start over inside it
    from tools.__main__ import main

    at = next(i for i, word in enumerate(sys.orig_argv) if i and word.startswith("-m"))
    name = sys.orig_argv[at].removeprefix("-m") or sys.orig_argv[at + 1]
    sys.exit(main([name.removeprefix("benchmarks."), *sys.argv[1:]]))
