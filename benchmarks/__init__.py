"""What is measured: each module has `main(quick: bool) -> list of rows`."""
