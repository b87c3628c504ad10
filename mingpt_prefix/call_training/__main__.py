import sys

from mingpt_prefix.call_training.teach import main

if __name__ == "__main__":
    sys.exit(main())
