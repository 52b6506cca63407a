"""The last stage: a package becomes a Hub repository, read back before anybody sees it."""
