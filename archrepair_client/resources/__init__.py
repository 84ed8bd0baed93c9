"""What a client can do, by what it is done to: a file per noun of the API."""
