"""Everything that `downstack up` needs to run on one machine."""
