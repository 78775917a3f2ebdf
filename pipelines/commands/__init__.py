"""The words of the `vast` command: what each takes, and what it calls.

Each command imports what it needs when it runs, so that `vast --help` and mistakes answer at once.
"""

EXIT_FAILED, EXIT_MISTAKE = 1, 2
