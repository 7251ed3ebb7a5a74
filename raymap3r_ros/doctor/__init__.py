"""`raymap3r doctor`: one file per check; each returns lines of a report."""
