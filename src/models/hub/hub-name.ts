import { RouterError } from '../../errors.js';
import { isRepoId } from '../disk/hub-repo.js';

/** What `user/repo:TAG` names. */
export interface HubName {
  /** `user/repo`. */
  readonly repo: string;
  /** As it was given; undefined without one, or with an empty one. */
  readonly tag: string | undefined;
}

/** llama-server looks for a tag as a regular expression; of one that is plain text both mean the same. */
const TAG = /^[\w.-]{0,128}$/;

/** @throws RouterError hub_name_invalid, in the words of llama-server (common/download.cpp, `common_download_split_repo_tag`) */
export function parseHubName(name: string): HubName {
  const [repo = '', tag = '', ...more] = name.split(':');
  if (!isRepoId(repo) || !TAG.test(tag) || more.length > 0) {
    const message = 'error: invalid HF repo format, expected <user>/<model>[:quant]';
    throw new RouterError('hub_name_invalid', message);
  }
  return { repo, tag: tag === '' ? undefined : tag };
}
