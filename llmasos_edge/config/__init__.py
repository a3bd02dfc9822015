"""The configuration: YAML files become frozen values (defaults <- board <- node), or errors that name the line."""
