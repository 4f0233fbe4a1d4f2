import type { Model } from './model.js';

/**
 * Gives each alias to one of `models`, which are sorted: an id goes before an alias, and of two aliases the first
 * model's stays. Each conflict adds one line to `warnings`.
 */
export function settleAliases(models: readonly Model[], warnings: string[]): Model[] {
  const ids = new Set(models.map(({ id }) => id));
  const owners = new Map<string, string>();
  const losers = new Map<string, string[]>();
  const settled = models.map((model) => {
    const aliases = model.aliases.filter((alias) => {
      if (alias === model.id) return true;
      const owner = ids.has(alias) ? alias : owners.get(alias);
      if (owner === undefined) {
        owners.set(alias, model.id);
        return true;
      }
      const without = losers.get(alias);
      if (without === undefined) losers.set(alias, [model.id]);
      else without.push(model.id);
      return false;
    });
    return { ...model, aliases };
  });
  for (const [alias, without] of losers) {
    const owner = owners.get(alias);
    const meaning = owner === undefined ? 'is the id of a model' : `belongs to '${owner}'`;
    warnings.push(`alias '${alias}' ${meaning}; it is ignored for ${some(without)}`);
  }
  return settled;
}

/** The first few of a list of names, and how many more there are: an alias in `[*]` reaches every model. */
function some(names: readonly string[]): string {
  const shown = names.slice(0, 3).map((name) => `'${name}'`);
  const more = names.length - shown.length;
  return shown.join(', ') + (more > 0 ? ` and ${more} more` : '');
}
