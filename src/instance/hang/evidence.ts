/** What one look at a child has found. */
export type Finding =
  /** The child has worked since the look before. */
  | { readonly kind: 'progress' }
  /** There is nothing to compare with yet; the next look can tell. */
  | { readonly kind: 'first' }
  /** It has not worked; `said` tells the operator what was seen. */
  | { readonly kind: 'none'; readonly said: string }
  /** This evidence cannot be had here. */
  | { readonly kind: 'unknown' };

/** One way to see from outside whether a child works, other than the bytes that it sends. */
export interface Evidence {
  /**
   * Compares with the look before. It costs so much that looks are seconds apart; one that takes too long, or rejects,
   * has found nothing out.
   *
   * @param quietMs for how long nothing else has shown progress
   */
  readonly look: (quietMs: number) => Promise<Finding>;
}
