"""The command `downstack`."""
