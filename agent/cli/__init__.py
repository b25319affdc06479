"""The ``atoll`` command line: a thin, quick client of the admin API, and the verbs that need no agent."""
