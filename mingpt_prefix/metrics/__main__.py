import sys

from mingpt_prefix.metrics.scores import main

if __name__ == "__main__":
    sys.exit(main())
