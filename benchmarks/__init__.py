"""One module per table: `make bench NAME=...`, `python demo NAME`, or `python -m benchmarks.NAME` from this folder."""
import sys

if __name__ == "benchmarks" and sys.argv[0] == "-m":
    # found as a package of its own, outside the pack that its modules import from: start over inside it
    from demo.__main__ import main

    sys.exit(main([sys.orig_argv[sys.orig_argv.index("-m") + 1].removeprefix("benchmarks."), *sys.argv[1:]]))
