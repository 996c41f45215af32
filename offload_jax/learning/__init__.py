"""Updates of a policy: what is collected, the loss, and one step of the optimiser."""
