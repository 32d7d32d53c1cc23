"""While a run goes on: copies of its assets, times, metrics, validation, requests to stop."""
