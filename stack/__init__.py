"""The servers and processes of `trainwire up`, and the folder that describes a running stack."""
