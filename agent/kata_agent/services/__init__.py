"""The services of protos/agent.proto: thin handlers, one method for each call."""
