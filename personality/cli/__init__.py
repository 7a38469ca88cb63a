"""Floor 4: the `persona` command. One file per verb, one output module; nothing below prints."""
