"""What client, server and audit must agree on: types, encoder, mechanism, ledger, messages."""
