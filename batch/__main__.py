"""python -m nulltext.batch --workflow FILE --table TABLE --out FOLDER: see docs/batch.md."""

import sys

from .run import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
