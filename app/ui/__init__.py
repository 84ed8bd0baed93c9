"""The dashboard: pages for people, made of the same routes as the API."""
