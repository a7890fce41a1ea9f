"""The public package of Downstack: contracts, client, command line and local run."""
