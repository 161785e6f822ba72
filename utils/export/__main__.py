"""The command `python -m utils.export`: see utils/export/export.py."""

from utils.export.export import main

if __name__ == "__main__":
    main()
