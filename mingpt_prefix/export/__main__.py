import sys

from mingpt_prefix.export.convert import main

if __name__ == "__main__":
    sys.exit(main())
