"""What the policy acts in, behind the Gymnasium interface, in a child process that may be killed. No torch, no ray."""
