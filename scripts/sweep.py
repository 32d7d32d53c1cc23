"""`python -m lighthouse.sweep`, under the name that it had first."""

from lighthouse.sweep.__main__ import main

if __name__ == "__main__":
    main()
