import sys

from mingpt_prefix.bank.store import main

if __name__ == "__main__":
    sys.exit(main())
