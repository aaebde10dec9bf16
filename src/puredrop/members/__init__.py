"""Any model with its dropout sites under control, so that the members of its ensemble can be run."""
