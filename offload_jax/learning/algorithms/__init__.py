"""The equations of every learning algorithm, one file each."""
