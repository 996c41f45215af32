"""The problem: instances, the equations of the model, and scenarios that instances come from."""
