"""Methods and policies compared on the same instances: gaps, test sets, charts and reports."""
