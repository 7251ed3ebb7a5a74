"""The subcommands of `raymap3r`."""
