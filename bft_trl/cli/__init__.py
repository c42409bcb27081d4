"""The `bft-trl` command."""
