"""The application: configurations, runs, the command line, what is shown."""
