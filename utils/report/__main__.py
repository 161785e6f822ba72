"""The command `python -m utils.report`: see utils/report/tables.py."""

from utils.report.tables import main

if __name__ == "__main__":
    main()
