"""The store in SQL: the published database, and questions to it."""
