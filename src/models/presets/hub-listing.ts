import { Agent, fetch } from 'undici';

/** What the hub says of a repository. */
export type HubListing =
  | {
      readonly kind: 'listed';
      /** The head of `main`, or else of the first branch. */
      readonly commit: string;
      /** The files of that commit, as paths with `/`. */
      readonly paths: readonly string[];
    }
  /** It says nothing, for this reason. */
  | { readonly kind: 'unknown'; readonly reason: string };

export interface HubQuestion {
  /** `user/repo`. */
  readonly repo: string;
  /** Says where the hub is. */
  readonly env: NodeJS.ProcessEnv;
  readonly token: string | undefined;
  /** The User-Agent of the binary on whose behalf the hub is asked. */
  readonly userAgent: string;
  readonly timeoutMs: number;
  readonly signal: AbortSignal;
}

const DEFAULT_ENDPOINT = 'https://huggingface.co/';
const COMMIT = /^[0-9a-fA-F]{40}$/;
/** What does not look like this, llama-server does not send (common/hf-cache.cpp, `is_valid_hf_token`). */
const TOKEN = /^hf_[A-Za-z0-9]{34,253}$/;
/** The hub gives at most a thousand entries of some hundred bytes. */
const MAX_ANSWER_BYTES = 16 * 1024 * 1024;

/** Why there is no listing, in words for the user. */
class NoListing extends Error {}

/**
 * Asks the hub which files a repository has, by the requests of llama-server (common/hf-cache.cpp,
 * `get_repo_files`), so that both see the same. No message holds the token or a password of the endpoint.
 *
 * @throws only the signal's reason
 */
export async function listHubRepo(question: HubQuestion): Promise<HubListing> {
  const { repo, signal, timeoutMs } = question;
  const timeout = AbortSignal.timeout(timeoutMs);
  const { url, host, headers } = requestsOf(question);
  const agent = new Agent({ maxResponseSize: MAX_ANSWER_BYTES });
  try {
    const ask = async (path: string): Promise<unknown> => {
      const race = AbortSignal.any([signal, timeout]);
      const response = await fetch(url + path, { headers, dispatcher: agent, signal: race });
      if (response.status === 200) return jsonIn(await response.text(), host);
      throw new NoListing(`${host} answered ${response.status}${hintFor(response.status, question)}`);
    };
    const commit = headOf(await ask(`api/models/${repo}/refs`));
    if (commit === undefined) throw new NoListing(`${host} names no branch of '${repo}'`);
    const tree = await ask(`api/models/${repo}/tree/${commit}?recursive=true`);
    if (!Array.isArray(tree)) throw new NoListing(`${host} answered something else than a list of files`);
    return { kind: 'listed', commit, paths: tree.flatMap(pathOf) };
  } catch (error) {
    signal.throwIfAborted();
    if (error instanceof NoListing) return { kind: 'unknown', reason: error.message };
    const late = `${host} did not answer within ${timeoutMs / 1000} s`;
    return {
      kind: 'unknown',
      reason: timeout.aborted ? late : `${host} cannot be reached: ${causeOf(error)}`,
    };
  } finally {
    await agent.destroy();
  }
}

/** Where the requests go, what the place is called in messages, and what is sent along. */
function requestsOf({ env, token = '', userAgent }: HubQuestion) {
  const endpoint = [env['MODEL_ENDPOINT'], env['HF_ENDPOINT']].find(Boolean) ?? DEFAULT_ENDPOINT;
  const { scheme, login, place } = partsOf(endpoint);
  const headers: Record<string, string> = {
    'user-agent': userAgent,
    accept: 'application/json',
    // Else the bound on an answer would be one on its compressed form.
    'accept-encoding': 'identity',
  };
  // fetch() refuses a URL with a password in it; of a password and a token, llama-server sends the token.
  if (login !== undefined) headers['authorization'] = `Basic ${Buffer.from(login).toString('base64')}`;
  if (TOKEN.test(token)) headers['authorization'] = `Bearer ${token}`;
  return { url: `${scheme}${place.replace(/\/?$/, '/')}`, host: place.replace(/\/.*$/s, ''), headers };
}

/** As llama-server takes it apart (common/http.h): what stands before the first `@` is user and password. */
function partsOf(endpoint: string) {
  const [, scheme = '', login, place = ''] = /^(https?:\/\/)?(?:([^@]*)@)?(.*)$/s.exec(endpoint) ?? [];
  return { scheme, login, place };
}

function jsonIn(text: string, host: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    throw new NoListing(`${host} answered something else than JSON`);
  }
}

/** fetch() says no more than that it failed; the system's code is in its cause. */
function causeOf(error: unknown): string {
  const { cause = error } = error as Error;
  const { code, message } = cause as NodeJS.ErrnoException;
  if (code === 'ERR_INVALID_URL') return 'MODEL_ENDPOINT or HF_ENDPOINT is no http:// or https:// URL';
  return code ?? message;
}

function hintFor(status: number, { repo, token = '' }: HubQuestion): string {
  if (status === 404) return `: it has no repository '${repo}'`;
  if (status !== 401 && status !== 403) return '';
  if (token === '') return `: '${repo}' does not exist, or needs a token (--hf-token or HF_TOKEN)`;
  if (TOKEN.test(token)) return `: '${repo}' does not exist, or the token is not good for it`;
  return ': the token was not sent, because it has not the form of one (hf_…)';
}

function headOf(refs: unknown): string | undefined {
  const branches = isRecord(refs) && Array.isArray(refs['branches']) ? refs['branches'] : [];
  const heads = branches.flatMap((branch: unknown) => {
    if (!isRecord(branch)) return [];
    const { name, targetCommit } = branch;
    return typeof name === 'string' && typeof targetCommit === 'string' && COMMIT.test(targetCommit)
      ? [{ name, targetCommit }]
      : [];
  });
  return (heads.find(({ name }) => name === 'main') ?? heads[0])?.targetCommit;
}

function pathOf(entry: unknown): string[] {
  if (!isRecord(entry) || entry['type'] !== 'file' || typeof entry['path'] !== 'string') return [];
  return [entry['path']];
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
