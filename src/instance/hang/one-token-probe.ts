import { askChild, type ChildAddress, type ChildQuestion, type NoAnswer } from './ask-child.js';

/**
 * What became of a probe: the child does its work, or says that it cannot, or breaks the connection, or says nothing; or
 * nobody wants to know any more, or can, and then nothing is known.
 */
export type ProbeAnswer = 'alive' | 'no answer' | 'called off' | 'broken' | { readonly failedWith: number };

/** The least work that goes all the way through a model. The prompt of no other request is taken up for it. */
const oneToken = JSON.stringify({ prompt: 'Hello', n_predict: 1, stream: false, cache_prompt: false });
const oneEmbedding = JSON.stringify({ content: 'Hello' });

/**
 * Asks a child for one token. A refusal (4xx, 501) is the answer of one that is alive, and so is an embedding where
 * there are no tokens to be had: an embedding model without a cache (BERT) answers a completion with 500 although
 * nothing is wrong with it. Where embeddings are not served that question is answered with 501 and costs nothing.
 *
 * @param options.timeoutMs for each of the two answers
 * @param options.signal aborted when the child is not watched any more
 */
export async function probeOneToken(
  address: ChildAddress,
  options: Pick<ChildQuestion, 'timeoutMs' | 'signal'>,
): Promise<ProbeAnswer> {
  const post = { method: 'POST', ...options } as const;
  const completion = await askChild(address, { ...post, path: '/completion', body: oneToken });
  if (typeof completion === 'string') return unanswered[completion];
  if (completion.status < 500 || completion.status === 501) return 'alive';
  const embedding = await askChild(address, { ...post, path: '/embedding', body: oneEmbedding });
  if (typeof embedding === 'string') return unanswered[embedding];
  return embedding.status === 200 ? 'alive' : { failedWith: completion.status };
}

const unanswered = {
  broken: 'broken',
  late: 'no answer',
  'not asked': 'called off',
} as const satisfies Record<NoAnswer, ProbeAnswer>;
