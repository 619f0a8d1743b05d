"""The test suites: unit (mirrors the folders), contract, crash, cluster, end_to_end. See CONTRIBUTING.md."""
