"""What crosses a border between two rooms: records, protocols, errors. Standard library and numpy only."""
