"""The store over gRPC: a server that is handed a store, and the client of it. The only room that imports grpc."""
