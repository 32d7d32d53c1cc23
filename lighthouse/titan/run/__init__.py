"""While a run goes on: stages' times, metrics, validation, statistics, requests to stop."""
